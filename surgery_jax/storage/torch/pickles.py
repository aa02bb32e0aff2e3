"""Reading pickles without running them.

A pickle is a program for a stack machine whose instructions include "import this" and "call that". This machine does
neither: a name stays a `Symbol`, and a call of a name that is not in the caller's own table stays a `Built`. So files
from elsewhere can at worst be refused. `PickleWriter` makes the few pickles that we write.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from mmap import mmap
from sys import getsizeof
from typing import NamedTuple

from ..bounds import Allowance, TooLarge
from ..files import paused_gc

__all__ = ["Built", "PickleRefused", "PickleWriter", "Symbol", "read_pickle"]


class PickleRefused(ValueError):
    """The bytes are not a pickle, or one that asks for more than data."""


class Symbol(NamedTuple):
    """A Python name that the pickle refers to; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Built:
    """What the pickle wants to be made by calling `symbol`; never called."""

    __slots__ = ("args", "state", "symbol")

    def __init__(self, symbol: object, args: object) -> None:
        """The call of `symbol` with `args`; `state` comes later, if at all."""
        self.symbol = symbol
        self.args = args
        self.state: object = None


class _Mark:
    pass


_MARK = _Mark()
_SCALARS = (str, int, float, bytes, type(None), Symbol, Built)  # what may be a key: hashing deep tuples can crash
_MAX_STACK = 1 << 22  # values that wait; a table of a million tensors pushed at once has half of that
_MAX_NUMBER = 255  # bytes of an integer; longer ones cannot even be printed
_MAX_TEXT = 1 << 24  # bytes of one
_PLACE = 8  # bytes that a value takes in what holds it


def read_pickle(
    data: bytes | mmap,
    calls: Mapping[str, Callable[..., object]],
    persistent: Callable[[object], object],
    start: int = 0,
    limit: int | None = None,
    allowance: Allowance | None = None,
) -> tuple[object, int]:
    """The value of the pickle that begins at `start`, and where it ends.

    `calls` has the only functions that are called, by full name; `persistent` resolves persistent ids. The memory that
    it takes is bounded by `allowance`, or else by the number of bytes from `start` to `limit`.

    Raises:
        PickleRefused: see there.
    """
    end = len(data) if limit is None else min(limit, len(data))
    machine = _Machine(data, calls, persistent, start, end, allowance or Allowance(end - start))
    try:
        with paused_gc():
            value = machine.run()
    except PickleRefused:
        raise
    except TooLarge as error:
        raise PickleRefused(str(error)) from None
    except RecursionError:
        raise PickleRefused("it is nested without end") from None
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise PickleRefused(f"not a sound pickle at byte {machine.at}: {str(error)[:200]}") from None
    return value, machine.at


class _Machine:
    def __init__(
        self,
        data: bytes | mmap,
        calls: Mapping[str, Callable[..., object]],
        persistent: Callable[[object], object],
        start: int,
        end: int,
        allowance: Allowance,
    ) -> None:
        self.data = data
        self.calls = calls
        self.persistent = persistent
        self.at = start
        self.end = end
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.spend = allowance.spend

    def run(self) -> object:
        data, table = self.data, _INSTRUCTIONS
        while self.at < self.end:
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            instruction = table.get(code)
            if instruction is None:
                raise PickleRefused(f"instruction {code:#x} at byte {self.at - 1} is not for data")
            instruction(self)
        raise PickleRefused("the pickle is cut off")

    def take(self, count: int) -> bytes:
        stop = self.at + count
        if count < 0 or stop > self.end:
            raise PickleRefused("the pickle is cut off")
        part = self.data[self.at : stop]
        self.at = stop
        return part

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self, count: int, encoding: str = "utf-8") -> str:
        if count > _MAX_TEXT:
            raise PickleRefused(f"a text of {count} bytes")
        return self.take(count).decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def signed(self, count: int) -> int:
        if count > _MAX_NUMBER:
            raise PickleRefused(f"an integer of {count} bytes")
        return int.from_bytes(self.take(count), "little", signed=True)

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.end)
        if stop < 0:
            raise PickleRefused("the pickle is cut off")
        return self.take(stop + 1 - self.at)[:-1].decode()

    def since_mark(self) -> list[object]:
        stack = self.stack
        position = len(stack) - 1
        while stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise PickleRefused("no mark")
        items = stack[position + 1 :]
        del stack[position:]
        return items

    def call(self, function: object, args: object) -> object:
        if type(args) is not tuple:
            raise PickleRefused("arguments that are no tuple")
        known = self.calls.get(str(function)) if type(function) is Symbol else None
        made = Built(function, args) if known is None else known(*args)
        self.spend(getsizeof(made) + _PLACE)
        return made

    # What follows are the instructions, in the order of the documentation in the module pickletools.

    def memoize(self, key: int) -> None:
        before = getsizeof(self.memo)
        self.memo[key] = self.stack[-1]
        self.spend(getsizeof(self.memo) - before)

    def reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def new_with_keywords(self) -> None:
        keywords = self.stack.pop()
        if keywords:
            raise PickleRefused("keyword arguments")
        self.reduce()

    def build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is Built:
            self.stack[-1].state = state
        # Anything else was made by our own calls, and attributes of those do not matter (`_metadata` of a state dict).

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            self.spend(8 * len(items))
            target.extend(items)
        elif type(target) is not Built:
            raise PickleRefused("appending to what is no list")

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if len(items) % 2 or type(target) not in (dict, Built):
            raise PickleRefused("setting items of what is no dictionary")
        for key in items[::2]:
            parts = key if type(key) is tuple else (key,)
            if not all(isinstance(part, _SCALARS) for part in parts):
                raise PickleRefused("a key that is neither text nor number")
        if type(target) is dict:
            before, count = getsizeof(target), len(target) + len(items) // 2
            target.update(zip(items[::2], items[1::2], strict=True))
            self.spend(getsizeof(target) - before)
            if len(target) != count:
                raise PickleRefused("a key twice in one dictionary")

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleRefused("a name that is no text")
        self.spend(64)
        self.stack.append(Symbol(module, name))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise PickleRefused("not enough on the stack")
        made = tuple(self.stack[-count:])
        self.spend(getsizeof(made) + _PLACE)
        self.stack[-count:] = [made]

    def push(self, value: object) -> None:
        if len(self.stack) >= _MAX_STACK:
            raise PickleRefused(f"more than {_MAX_STACK} values at once")
        self.stack.append(value)


def _push(value: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    """What exists already."""
    return lambda machine: machine.push(value(machine))


def _make(value: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    """What takes memory of its own."""

    def made(machine: _Machine) -> None:
        new = value(machine)
        machine.spend(getsizeof(new) + _PLACE)
        machine.push(new)

    return made


_INSTRUCTIONS: dict[int, Callable[[_Machine], object]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "(": _push(lambda m: _MARK),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.since_mark(),
        "2": _push(lambda m: m.stack[-1]),
        "N": _push(lambda m: None),
        "\x88": _push(lambda m: True),
        "\x89": _push(lambda m: False),
        "J": _make(lambda m: m.signed(4)),
        "K": _push(lambda m: m.number(1)),
        "M": _make(lambda m: m.number(2)),
        "\x8a": _make(lambda m: m.signed(m.number(1))),
        "\x8b": _make(lambda m: m.signed(m.number(4))),
        "G": _make(lambda m: struct.unpack(">d", m.take(8))[0]),
        "X": _make(lambda m: m.text(m.number(4))),
        "\x8c": _make(lambda m: m.text(m.number(1))),
        "\x8d": _make(lambda m: m.text(m.number(8))),
        "T": _make(lambda m: m.text(m.number(4), "latin-1")),
        "U": _make(lambda m: m.text(m.number(1), "latin-1")),
        "B": _make(lambda m: m.take(m.number(4))),
        "C": _make(lambda m: m.take(m.number(1))),
        "\x8e": _make(lambda m: m.take(m.number(8))),
        ")": _push(lambda m: ()),
        "]": _make(lambda m: []),
        "}": _make(lambda m: {}),
        "\x8f": _make(lambda m: []),  # EMPTY_SET: no set is wanted anywhere, so its members stay a list
        "t": _make(lambda m: tuple(m.since_mark())),
        "l": _make(lambda m: m.since_mark()),
        "\x91": _make(lambda m: m.since_mark()),  # FROZENSET
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "a": lambda m: m.append([m.stack.pop()]),
        "e": lambda m: m.append(m.since_mark()),
        "\x90": lambda m: m.append(m.since_mark()),  # ADDITEMS
        "s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        "u": lambda m: m.set_items(m.since_mark()),
        "q": lambda m: m.memoize(m.number(1)),
        "r": lambda m: m.memoize(m.number(4)),
        "\x94": lambda m: m.memoize(len(m.memo)),
        "h": _push(lambda m: m.memo[m.number(1)]),
        "j": _push(lambda m: m.memo[m.number(4)]),
        "c": _make(lambda m: Symbol(m.line(), m.line())),
        "\x93": lambda m: m.stack_global(),
        "R": lambda m: m.reduce(),
        "\x81": lambda m: m.reduce(),  # NEWOBJ
        "\x92": lambda m: m.new_with_keywords(),
        "b": lambda m: m.build(),
        "Q": _push(lambda m: m.persistent(m.stack.pop())),
    }.items()
}


class PickleWriter:
    """A pickle of protocol 2 made of pieces; values of other kinds than here are not needed."""

    def __init__(self) -> None:
        """Begin a pickle."""
        self._parts = [b"\x80\x02"]
        self._memo: dict[tuple[str, str], int] = {}

    def raw(self, instructions: bytes) -> None:
        """Instructions as they are."""
        self._parts.append(instructions)

    def text(self, value: str) -> None:
        """Push a text."""
        data = value.encode("utf-8", "surrogatepass")
        self._parts.append(b"X" + struct.pack("<I", len(data)) + data)

    def number(self, value: int) -> None:
        """Push an integer of 0 or more."""
        if value < 1 << 8:
            self._parts.append(b"K" + struct.pack("<B", value))
        elif value < 1 << 31:
            self._parts.append(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes(9, "little")
            self._parts.append(b"\x8a" + bytes([len(data)]) + data)

    def numbers(self, values: tuple[int, ...]) -> None:
        """Push a tuple of integers."""
        self._parts.append(b"(")
        for value in values:
            self.number(value)
        self._parts.append(b"t")

    def symbol(self, module: str, name: str) -> None:
        """Push what `module.name` will be to the reader."""
        known = self._memo.get((module, name))
        if known is not None:
            self._parts.append(b"h" + struct.pack("<B", known))
            return
        known = self._memo[module, name] = len(self._memo)  # fewer than 256: names of functions and dtypes
        self._parts.append(f"c{module}\n{name}\n".encode() + b"q" + struct.pack("<B", known))

    def bytes(self) -> bytes:
        """The whole pickle."""
        return b"".join([*self._parts, b"."])
