"""Slices of tensors: `[1, :4, ::2]` to numbers, with NumPy's basic indexing and positive steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..core.errors import PlanError

__all__ = ["Range", "Slice", "parse_slice", "resolve_slice"]


@dataclass(frozen=True, slots=True)
class Range:
    """`start:stop:step`, each part None where it was left out; step is positive."""

    start: int | None
    stop: int | None
    step: int | None

    def __str__(self) -> str:
        start, stop = ("" if part is None else str(part) for part in (self.start, self.stop))
        return f"{start}:{stop}" + ("" if self.step is None else f":{self.step}")


Slice: TypeAlias = tuple[int | Range, ...]


def parse_slice(text: str) -> Slice:
    """The components of a slice; `text` includes the brackets, `[]` selects everything.

    Raises:
        PlanError: not a slice, or a step that is not positive.
    """
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        raise _error(text, "a slice stands in brackets")
    inner = text[1:-1].strip()
    return tuple(_component(part.strip(), text) for part in inner.split(",")) if inner else ()


def resolve_slice(
    parts: Slice, shape: tuple[int, ...]
) -> tuple[tuple[tuple[int, int, int], ...], tuple[int, ...], tuple[bool, ...]]:
    """What a slice selects from a tensor of this shape, as NumPy indexing would.

    Returns, for ALL axes of `shape`: (start, step, count) per axis; the shape of the result, without the axes that an
    integer removed; and for each axis whether it was removed.

    Raises:
        PlanError: an index out of range, or more components than axes.
    """
    if len(parts) > len(shape):
        raise PlanError(
            f"too many slice components: {len(parts)} for a tensor of {len(shape)} axes",
            expected=f"at most {len(shape)} components for shape {list(shape)}",
        )
    axes = []
    for axis, size in enumerate(shape):
        part = parts[axis] if axis < len(parts) else Range(None, None, None)
        if isinstance(part, int):
            if not -size <= part < size:
                raise PlanError(
                    f"slice index {part} is out of range for axis {axis} of shape {list(shape)}",
                    expected=f"an index from {-size} to {size - 1}" if size else "no index: the axis has length 0",
                )
            axes.append((part % size, 1, 1))
        else:
            start, stop, step = slice(part.start, part.stop, part.step).indices(size)
            axes.append((start, step, len(range(start, stop, step))))
    removed = tuple(axis < len(parts) and isinstance(parts[axis], int) for axis in range(len(shape)))
    return tuple(axes), tuple(axes[axis][2] for axis in range(len(shape)) if not removed[axis]), removed


def _component(part: str, text: str) -> int | Range:
    if not part:
        raise _error(text, "an empty component")
    words = part.split(":")
    if len(words) > 3:
        raise _error(text, f"{part!r} has more than three parts")
    numbers = [_integer(word, text) if word else None for word in words]
    if len(numbers) == 1:
        return numbers[0] or 0
    step = numbers[2] if len(numbers) == 3 else None
    if step is not None and step < 1:
        raise _error(text, f"the step {step} is not positive")
    return Range(numbers[0], numbers[1], step)


def _integer(word: str, text: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise _error(text, f"{word!r} is not an integer") from None


def _error(text: str, reason: str) -> PlanError:
    return PlanError(
        f"invalid slice {text!r}: {reason}", expected="integers and ranges start:stop:step, such as [0, 1:4, ::2]"
    )
