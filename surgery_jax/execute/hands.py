"""Several threads at the parts of one piece of work: who is idle lends a hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Hands", "InTurn"]

T = TypeVar("T")


class Hands:
    """Threads that help others with what these have to do in many parts.

    They are daemons, as workers are: nobody waits for one that is stuck when the process is to end.
    """

    def __init__(self, count: int, entering: Callable[[], AbstractContextManager[object]]) -> None:
        """`count`: how many help, of all together. They work within what `entering` gives."""
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count, self._entering = count, entering
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def each(self, numbers: Iterable[int], work: Callable[[int, int], None], most: int) -> None:
        """Do `work(number, hand)` for all numbers, which are begun in their order, by at most so many threads at once;
        the calling one is hand 0. No thread is at work any more when it returns or raises.

        Raises:
            BaseException: the first that a call raised.
        """
        parts = _Parts(numbers, work)
        for hand in range(1, min(most, self._count + 1)):
            self._asked.put(partial(parts.help_out, hand))
            self._begin()
        parts.finish()

    def _begin(self) -> None:
        """One thread more, until there are as many as there may be."""
        with self._lock:
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._help, daemon=True, name=f"surgery-hand-{len(self._threads)}")
                self._threads.append(thread)
                thread.start()

    def _help(self) -> None:
        with self._entering():
            while (asked := self._asked.get()) is not None:
                asked()

    def close(self) -> None:
        """Let the threads go."""
        with self._lock:
            for _ in self._threads:
                self._asked.put(None)


class _Parts:
    """The parts of one piece of work, and who is at work on them."""

    def __init__(self, numbers: Iterable[int], work: Callable[[int, int], None]) -> None:
        self._left, self._work = iter(numbers), work
        self._helping = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def help_out(self, hand: int) -> None:
        """Do parts as long as there are any."""
        with self._changed:
            self._helping += 1
        try:
            self._pull(hand)
        finally:
            with self._changed:
                self._helping -= 1
                self._changed.notify_all()

    def finish(self) -> None:
        """Do what is left, and wait for those who help; who comes later finds nothing to do."""
        self._pull(0)
        with self._changed:
            self._changed.wait_for(lambda: self._helping == 0)
            del self._work  # who is still to come must not keep the buffers that it works in
            if self._error is not None:
                raise self._error

    def _pull(self, hand: int) -> None:
        while True:
            with self._changed:
                number = None if self._error is not None else next(self._left, None)
            if number is None:
                return
            try:
                self._work(number, hand)
            except BaseException as error:
                with self._changed:
                    self._error = self._error or error


class InTurn(Generic[T]):
    """Hands on what comes of numbered parts in the order of their numbers, whatever the order in which it comes."""

    def __init__(self, numbers: Iterable[int], take: Callable[[T], None]) -> None:
        """`take` is called with each of them, by one thread at a time."""
        self._order, self._take = iter(numbers), take
        self._next = next(self._order, None)
        self._early: dict[int, T] = {}
        self._lock = threading.Lock()

    def put(self, number: int, found: T) -> None:
        """What came of a part."""
        with self._lock:
            self._early[number] = found
            while self._next is not None and self._next in self._early:
                self._take(self._early.pop(self._next))
                self._next = next(self._order, None)
